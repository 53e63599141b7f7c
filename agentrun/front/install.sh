#!/bin/sh
# Install agentrun; called by `make install` with PYTHON, BINDIR, LIBEXECDIR, DESTDIR and VERSION set.
# Every file is replaced by rename, so that a runtime command that starts meanwhile sees the old or the new one.
# shellcheck disable=SC2153 # PYTHON comes from make
set -eu

bin=$DESTDIR$BINDIR
lib=$DESTDIR$LIBEXECDIR
python=$("$PYTHON" -I -S -c 'import os, sys; print(os.path.realpath(sys.executable))')
stdlib=$("$PYTHON" -I -S -c 'import os; print(os.path.dirname(os.__file__))')
"$PYTHON" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
	echo "install: $python is older than Python 3.10; set PYTHON to a newer one" >&2
	exit 1
}

# render SOURCE TARGET: fill in the places that the programs must not look for at run time.
render() {
	sed -e "s|@PYTHON@|$python|" -e "s|@STDLIB@|$stdlib|" -e "s|@LIBEXECDIR@|$LIBEXECDIR|" \
		-e "s|@VERSION@|$VERSION|" "$1" >"$2.new"
	chmod 0755 "$2.new"
	mv -f "$2.new" "$2"
}

# The library is made beside the one that is in use, and takes its place as a whole: nothing of an older version
# stays, and its hot path never runs on modules of this one.
new=$lib.new
rm -rf "$new"
install -d -m 0755 "$bin" "$new" "$new/bpf"
find agentrun -name __init__.py | while read -r file; do
	package=${file%/*}
	install -d -m 0755 "$new/$package"
	install -m 0644 "$package"/*.py "$new/$package"
done
# BPF objects are optional: built by `make bpf`, here or on another machine. align.bpf.o is for a test only.
for object in bpf/build/*.bpf.o; do
	case $object in */align.bpf.o | *'*'*) continue ;; esac
	install -m 0644 "$object" "$new/bpf"
done
install -m 0644 bpf/trace.bcc.c "$new/bpf" # for `agentrunctl trace`: bcc compiles it on the host
install -m 0644 agentrun/front/oci.py "$new"
# unchecked-hash: the hot path then never looks at the sources (one stat less for each module).
"$python" -I -S -m compileall -q -o 2 --invalidation-mode unchecked-hash -s "$new" -p "$LIBEXECDIR" "$new/agentrun"
"$python" -I -S agentrun/front/bundle.py "$new/agentrun" "$new/hotpath.bin" "$LIBEXECDIR/agentrun"
chmod 0644 "$new/hotpath.bin"
"$python" -I -S agentrun/front/switch.py "$new" "$lib"

render agentrun/front/agentrun.in "$bin/agentrun"
render agentrun/front/agentrunctl.in "$bin/agentrunctl"
install -d -m 0755 "$DESTDIR$SBINDIR" "$DESTDIR$UNITDIR"
render agentrun/front/agentrund.in "$DESTDIR$SBINDIR/agentrund"
for unit in agentrund.service agentrun-bpf.service agentrun-net.service agentrun-scx.service; do
	sed -e "s|@SBINDIR@|$SBINDIR|" -e "s|@BINDIR@|$BINDIR|" "configs/$unit" >"$DESTDIR$UNITDIR/$unit.new"
	chmod 0644 "$DESTDIR$UNITDIR/$unit.new"
	mv -f "$DESTDIR$UNITDIR/$unit.new" "$DESTDIR$UNITDIR/$unit"
done
ln -sfn agentrun "$bin/agentrun-runc"
ln -sfn agentrun "$bin/agentrun-crun"

if [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ]; then
	# Compile the configuration now, so that the first container need not.
	"$python" -I -S -c "import sys; sys.path.insert(0, '$LIBEXECDIR')
from agentrun.base import paths
from agentrun.decision import inforce
problems = inforce.load(paths.host_paths()).problems
sys.exit('\n'.join(problems) or 0)"
fi
