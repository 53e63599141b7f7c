"""From a command to a plan. Pure, but for `inforce`, which reads what is in force. Light."""
