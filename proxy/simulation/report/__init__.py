"""A comparison as one page that needs nothing else: no file beside it, no address, no script.

    axes        which values an axis names, and where a value lies on it
    charts      figures become the shapes of a drawing
    over_time   what each instance did becomes the shapes of a drawing, for as many as a page can show
    page        a comparison becomes HTML
    templates   the page's words and looks

All of it is pure: figures come in as values, text goes out.
"""
