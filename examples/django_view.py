"""A Django view that publishes in one line, in a project of one file.

python examples/django_view.py runserver
curl localhost:8000/orders --json '{"customer": "ada", "item": "tea"}'
"""

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST
from pydantic import ValidationError

from rstream import Event, RStream
from rstream.errors import EventError

settings.configure(DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="for this example only")

log = RStream()


class OrderPlaced(Event):
    customer: str
    item: str
    quantity: int = 1


orders = log.stream("django-orders", OrderPlaced, key="customer", shards=4)


@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    try:
        order = OrderPlaced.model_validate_json(request.body)
        return JsonResponse({"id": str(orders.sync.publish(order))}, status=202)
    except ValidationError as error:
        return HttpResponse(error.json(include_input=False), "application/json", status=422)
    except EventError as error:  # what no model checks: an empty key, an event that is too large
        return JsonResponse({"detail": str(error)}, status=422)


urlpatterns = [path("orders", place_order)]
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
