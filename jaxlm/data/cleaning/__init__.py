"""Web pages to clean documents: figure 5 of the paper with the rules of C4."""
