"""The verbs that agentrun takes part in. Light: `verbs` is where the hot path begins."""
