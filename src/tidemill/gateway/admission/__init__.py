"""Who is let in: in-flight caps, a short queue, adaptive concurrency, then rate limits and budgets."""

from tidemill.gateway.admission.gatekeeper import Admission
from tidemill.gateway.admission.seams import Admissible, Limits, Reservation, Ticket, Waiting

__all__ = ["Admissible", "Admission", "Limits", "Reservation", "Ticket", "Waiting"]
