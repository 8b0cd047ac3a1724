"""What the screen shows, without a screen: the graph, its changes, jobs, events, rates, and what keeps them fresh."""
