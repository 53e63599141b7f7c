"""Entry of the hot path, run by the shell front:

    python3 -I -S -OO oci.py PINNED PLAIN ARGUMENT...

PINNED is the kind of backend that the program's name asks for, or empty. PLAIN is the backend to become when
our part cannot even begin (a damaged installation must not leave a container that nobody can delete); it is
empty where the policy is to refuse. `-I -S` leaves `site` out, so our own folder is put on the path here.
"""

import gc
import posix
import sys

gc.disable()  # the process becomes the backend within milliseconds; there is nothing worth collecting
sys.path.insert(0, __file__.rpartition("/")[0])

pinned, plain, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
try:
    from agentrun.runtime import main

    status = main(arguments, pinned)
except Exception as error:  # noqa: BLE001 - see above
    if plain:
        posix.execve(plain, [plain, *arguments], {**posix.environ, b"AGENTRUN_DEPTH": b"1"})
    sys.stderr.write(f"agentrun: run hot path: {type(error).__name__}: {error}\n")
    status = 255 if "exec" in arguments else 1
sys.exit(status)
