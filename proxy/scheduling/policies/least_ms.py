"""A request goes where its first token is predicted to come first, as far as that costs others no more time
than it gains.
"""

from proxy.scheduling.goals import prices_within
from proxy.scheduling.sides import PricedPlaces, Sides, prices_of, sides_of
from proxy.scheduling.terms import priced
from proxy.scheduling.types import View


class LeastMs:
    """Prices pairs by predicted milliseconds; `scheduling/terms.py` has the formula."""

    unit = "milliseconds"
    reads_latency = True
    weighs_bypass = True

    def prices(self, view: View) -> list[float]:
        """As `Policy`, in milliseconds."""
        return prices_of(self.priced(sides_of(view)), view)

    def priced(self, sides: Sides) -> PricedPlaces:
        """As `PlacePolicy`, in milliseconds."""
        places = priced(sides)
        if sides.left_ms is None:
            return places
        return places._replace(prices=prices_within(places.prices, places.ttft_ms, sides.left_ms))
