"""The commands: each file has the settings and the `main` of one script.

Threads that wait for others spin for some microseconds only and then sleep, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT is
set: beside another busy process, spinning threads take the processor from the ones that they wait for. OpenMP reads
this when torch is imported, which happens after this file; child processes inherit it.
"""

import os

SPINS = "1000"  # on an idle machine as fast as spinning for ever; sleeping at once costs a training step 60 %

if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT=SPINS)  # the second is for GNU's OpenMP, torch's usual
