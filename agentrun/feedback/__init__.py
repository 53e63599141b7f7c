"""What an agent is told (`text`, pure), and the process that holds copies of calls' stderr (`keeper`)."""
