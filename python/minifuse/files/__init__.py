"""Files of users: texts and tables in, vectors and pictures out, whole or not at all."""
