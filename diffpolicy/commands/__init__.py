"""The commands: each file has the settings and the `main` of one script.

Threads that wait for others sleep instead of spinning, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT is set: beside another
busy process, spinning threads take the processor from the ones that they wait for. OpenMP reads this when torch is
imported, which happens after this file; child processes inherit it.
"""

import os

if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
