"""What any process of ours that stays needs: a loop, systemd, a status file, the policy in force."""
