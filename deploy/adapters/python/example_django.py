"""A small shop: PORT=8081 NAME=shop-1 AUDIENCE=shop JWKS=http://127.0.0.1:9900/.well-known/jwks.json python example_django.py"""

import os
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import django
from django.apps import AppConfig
from django.conf import settings
from django.contrib import auth
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

NAME = os.environ.get("NAME", "shop")


class Shop(AppConfig):
    name = __name__
    label = "shop"

    def import_models(self):
        super().import_models()
        define_shopper()


def define_shopper():
    """Users are who they say they are, so that the example needs no database."""
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db import models

    class Shopper(AbstractBaseUser):
        username = models.CharField(max_length=40, primary_key=True)
        last_login = None
        USERNAME_FIELD = "username"

        class Meta:
            app_label = "shop"


class Trusting:
    """Believes everybody."""

    def authenticate(self, request, user):
        return auth.get_user_model()(username=user) if user else None

    def get_user(self, user_id):
        return self.authenticate(None, user_id)


def healthz(request):
    return HttpResponse("ok", content_type="text/plain")


def whoami(request):
    session = request.session
    session["visits"] = session.get("visits", 0) + 1
    user = request.user.get_username() or None
    return JsonResponse({"server": NAME, "user": user, "cart": session.get("cart", []), "visits": session["visits"]})


@require_POST
def login(request):
    user = auth.authenticate(request, user=request.POST.get("user"))
    if user:
        auth.login(request, user)
    return see_home()


@require_POST
def cart(request):
    item = request.POST.get("item")
    if item:
        request.session["cart"] = [*request.session.get("cart", []), item]
    return see_home()


@require_POST
def logout(request):
    auth.logout(request)
    return see_home()


def see_home():
    return HttpResponseRedirect("/", status=303)


urlpatterns = [
    path("healthz", healthz),
    path("", whoami),
    path("api/whoami", whoami),
    path("login", login),
    path("cart", cart),
    path("logout", logout),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    AUTH_USER_MODEL="shop.Shopper",
    AUTHENTICATION_BACKENDS=[f"{__name__}.Trusting"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", f"{__name__}.Shop"],
    # The proxy refuses what other sites send.
    MIDDLEWARE=[
        "django.middleware.common.CommonMiddleware",
        "steadfast_session.django.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF=__name__,
    # All servers of a pool have the same.
    SECRET_KEY="an example's, and no secret",
    SESSION_ENGINE="steadfast_session.django",
    STEADFAST={
        "audience": os.environ.get("AUDIENCE", "shop"),
        "jwks": os.environ.get("JWKS", "http://127.0.0.1:9900/.well-known/jwks.json"),
        "exempt": ["/healthz"],
    },
)
django.setup()


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8081"))
    make_server("127.0.0.1", port, get_wsgi_application(), server_class=Server).serve_forever()
