"""``zk0bot``: what people type. One file a verb; heavy imports stay inside the verbs."""
