"""The settings of Django, of which a process has one set only: all tests that need them in this process share these."""

__all__ = ["configure_django"]


def configure_django() -> None:
    """Configure Django and load its apps, unless a test of this process has done so."""
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    if not settings.configured:
        settings.configure(
            SECRET_KEY="secret",
            ALLOWED_HOSTS=["*"],
            INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
            LOGIN_URL="/login",
            USE_TZ=True,
        )
    get_wsgi_application()  # loads the apps: before it there are no models
