"""What is known of the engines' caches: learned from their events, and judged by what engines report of
legs.
"""
