"""The name by which node folders of earlier versions start their SuperNode."""

from pluralllm_fl.processes.supernode import main

if __name__ == "__main__":
    main()
