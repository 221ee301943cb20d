"""One package per backend; none of them imports another."""
