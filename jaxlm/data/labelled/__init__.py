"""Labelled text: posts with a class each, the groups they speak of, and what people marked as their reason."""
