"""One file per op: its schema, shape function, autograd rule and public function."""
