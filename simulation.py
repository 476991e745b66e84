"""Simulate every group on this machine: ``python simulation.py --help``."""

from pluralllm_fl.cli import simulate_main

if __name__ == "__main__":
    simulate_main()
