"""What every room may import: array types, logical axes, rules, configuration, resizing."""
