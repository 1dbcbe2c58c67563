"""The bundled model and sample images."""
