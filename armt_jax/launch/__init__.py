"""Starting train.py and eval.py on many processes: prints or runs the exact commands. Knows nothing of JAX; runs on a login node."""
