"""Files of images: the processed weights of an engine, to be read without its checkpoint."""
