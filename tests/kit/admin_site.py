"""A site of Django with its admin: fifty thousand orders, and actions on all of them, behind two lines of ours."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
from django.conf import settings

ROWS = 50_000
NAME, PASSWORD = "ann", "right"

settings.configure(
    SECRET_KEY="secret",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    STATIC_URL="/static/",
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(os.environ["SITE_DIRECTORY"], "site.db")}
    },
    INSTALLED_APPS=[f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)
django.setup()

from django.contrib import admin  # noqa: E402  # they need the settings
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from bgmiddleware import BackgroundMiddleware, marks, track  # noqa: E402


class Order(models.Model):
    """One of many."""

    customer = models.CharField(max_length=20)
    paid = models.BooleanField(default=False)

    class Meta:
        """Of an app that is there already."""

        app_label = "auth"


@admin.action(description="Export as CSV")
def export(model: Any, request: HttpRequest, orders: Any) -> HttpResponse:
    rows = (f"{order.pk},{order.customer}\n" for order in track(list(orders.order_by("pk")), "orders"))
    disposition = {"Content-Disposition": 'attachment; filename="orders.csv"'}
    return HttpResponse(["id,customer\n", *rows], content_type="text/csv", headers=disposition)


@admin.action(description="Mark as paid")
def pay(model: Any, request: HttpRequest, orders: Any) -> None:
    print(f"{request.user} marks orders as paid")
    model.message_user(request, f"{orders.update(paid=True)} orders are paid now.")


class OrderAdmin(admin.ModelAdmin):
    """The list, with its actions."""

    list_display = ("id", "customer", "paid")
    actions = (export, pay)


def _orders() -> Iterator[Order]:
    for number in range(ROWS):
        yield Order(customer=f"customer {number % 997}")


admin.site.register(Order, OrderAdmin)
urlpatterns = [path("admin/", admin.site.urls)]

call_command("migrate", verbosity=0)
with connection.schema_editor() as editor:
    editor.create_model(Order)
Order.objects.bulk_create(_orders(), batch_size=400)
User.objects.create_superuser(NAME, "", PASSWORD)

when = marks.all_of(marks.path("/admin/auth/order/", methods=["POST"]), marks.navigation)
application = BackgroundMiddleware(get_wsgi_application(), when=when)
