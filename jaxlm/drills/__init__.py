"""Fault drills: real processes of this machine are disturbed on purpose, and must come out as if they had not been."""
