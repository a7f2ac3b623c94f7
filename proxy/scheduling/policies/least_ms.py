"""A request goes where its first token is predicted to come first, as far as that costs others no more time
than it gains.
"""

from proxy.scheduling.goals import prices_within
from proxy.scheduling.sides import PricedPlaces, Sides
from proxy.scheduling.terms import priced, prices_of, terms_of
from proxy.scheduling.types import View


class LeastMs:
    """Prices pairs by predicted milliseconds; `scheduling/terms.py` has the formula."""

    unit = "milliseconds"
    reads_latency = True
    weighs_bypass = True

    def prices(self, view: View) -> list[float]:
        """As `Policy`, in milliseconds."""
        prices = prices_of(view)
        if view.left_ms is None:
            return prices
        return [*prices_within(prices, lambda place: terms_of(view.pairs[place], view), view.left_ms)]

    def priced(self, sides: Sides) -> PricedPlaces:
        """As `PlacePolicy`, in milliseconds."""
        return priced(sides)
