"""`python -m jaxlm`, for machines where the script is not installed."""

from jaxlm.cli import main

main()
