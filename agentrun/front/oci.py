"""Entry of the hot path: `python3 -I -S -OO oci.py PINNED ARGUMENT...`, run by the shell front.

`-I -S` leaves `site` and the user's environment out, so the package's own folder is put on the path here.
"""

import gc
import sys

gc.disable()  # the process becomes the backend within milliseconds; there is nothing worth collecting
sys.path.insert(0, __file__.rpartition("/")[0])

from agentrun.runtime import main  # noqa: E402

sys.exit(main(sys.argv[2:], sys.argv[1]))
