"""Forms: exact ways to evaluate a graph, and the plan from which every backend prints one."""
