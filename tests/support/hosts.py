"""A host below a directory, with a policy in force."""

from __future__ import annotations

import os
from pathlib import Path

from agentrun.base.paths import Paths
from agentrun.decision import inforce


def host_with(root: Path, policy: str) -> Paths:
    """Its paths; the directories that a policy, the log and the store need are there."""
    for folder in ("var/log", "run", "etc/agentrun/policy.d"):
        (root / folder).mkdir(parents=True)
    paths = Paths(str(root))
    os.makedirs(paths.state, 0o700)
    Path(paths.policy, "10-test.yaml").write_text(policy)
    inforce.load(paths)
    return paths
