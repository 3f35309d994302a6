"""What watches a federation: dashboards, rules, alerts, the metrics' reference, ``zk0bot top``."""
