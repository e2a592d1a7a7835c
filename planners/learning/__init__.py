"""What measured steps teach: calibration, ledger, and the agent that chooses among plans."""
