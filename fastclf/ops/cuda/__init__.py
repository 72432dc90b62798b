"""The GPU's kernels for a head's training step, one operation each, around torch's matrix products (`ops.head.cuda`).

They write into tensors that the caller has allocated, all on one device, and never wait for it. An operation's
definition, its checks and its kernel stand together.
"""
