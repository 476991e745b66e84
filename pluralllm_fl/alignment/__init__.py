"""Language models aligned with many groups: rewards of many groups into one."""
