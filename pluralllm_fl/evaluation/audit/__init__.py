"""What can be read of a training group's answers, by whom: ``pluralllm audit``."""
