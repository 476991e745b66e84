"""The name by which node folders of earlier versions start their SuperNode."""

import runpy

if __name__ == "__main__":
    runpy.run_module("pluralllm_fl.processes.supernode", run_name="__main__", alter_sys=True)
