"""Entry of the hot path, run by the shell front:

    python3 -I -S -OO oci.py KIND PLAIN LC_CTYPE_WAS_SET ARGUMENT...

KIND is the kind of backend (runc, crun) that the program's name or the container's state asks for, or empty.
PLAIN is the backend to become when our part cannot even begin (a damaged installation must not leave a
container that nobody can delete); it is empty where the policy is to refuse. `-I -S` leaves `site` out, so
our own folder is put on the path here.
"""

import _signal as signal  # type: ignore[import-not-found]  # the C module, as in oci/handoff.py
import gc
import marshal
import posix
import sys
from _frozen_importlib_external import MAGIC_NUMBER

gc.disable()  # the process becomes the backend within milliseconds; there is nothing worth collecting
LIBRARY = __file__.rpartition("/")[0]
sys.path.insert(0, LIBRARY)


def load_bundle(path: str) -> None:
    """Run the modules of `hotpath.bin` (see bundle.py), where it was made for this very interpreter."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return
    if not data.startswith(MAGIC_NUMBER):
        return
    rows = marshal.loads(memoryview(data)[len(MAGIC_NUMBER) :])  # noqa: S302 - our own file, root's
    for name, code, is_package in rows:
        module = type(sys)(name)
        sys.modules[name] = module
        parent, _, own_name = name.rpartition(".")
        if is_package:
            module.__path__ = [f"{LIBRARY}/{name.replace('.', '/')}"]
        if parent:
            setattr(sys.modules[parent], own_name, module)
        exec(code, module.__dict__)  # noqa: S102


kind, plain, had_lc_ctype, arguments = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
if not had_lc_ctype:
    # In the C locale Python sets it for its children (PEP 538); the backend gets what the engine gave.
    posix.environ.pop(b"LC_CTYPE", None)
try:
    load_bundle(LIBRARY + "/hotpath.bin")
    from agentrun.runtime.verbs import main

    status = main(arguments, kind)
except Exception as error:  # noqa: BLE001 - see above
    if plain:
        # As agentrun/oci/handoff.py does, which may be what is broken: what Python ignores stays ignored.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        posix.execve(plain, [plain, *arguments], {**posix.environ, b"AGENTRUN_DEPTH": b"1"})
    sys.stderr.write(f"agentrun: run hot path: {type(error).__name__}: {error}\n")
    status = 255 if "exec" in arguments else 1
sys.exit(status)
