"""Real CRIUs for the tests and the benchmark, from Debian's packages; nothing is installed.

`debian.py` downloads and unpacks packages, `native.py` makes of them a CRIU that runs on this
kernel, `machine.py` and `vm.py` a virtual machine with an older one. `dumper.py` dumps and
restores, `workload.py` and `redis.py` start what is dumped and ask it whether its memory is right.
"""
