"""Text in, features out: a frozen DeBERTa-v2/v3 encoder that knows no task."""
