"""What is known of the engines' caches: fed by their events, judged by what their legs report."""
