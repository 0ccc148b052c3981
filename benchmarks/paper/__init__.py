"""The paper's tables, rerun on CIFAR-100 with networks that a CPU trains in minutes; see `__main__`."""
