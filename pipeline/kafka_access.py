"""How our Kafka clients prove who they are: TLS and SASL from the settings, librdkafka's and aiokafka's."""

from __future__ import annotations

import ssl
from typing import Any

from pipeline.contract.secret import load_secret
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.tls import client_context

#: A password that people choose is short; one that a program makes need not be.
MIN_PASSWORD_BYTES = 16


def librdkafka_options(settings: Settings) -> dict[str, str]:
    """For confluent-kafka's clients; empty for the embedded broker and for plain text.

    Raises ConfigurationError where files cannot be used; no message holds a password.
    """
    if settings.kafka is None or settings.kafka_security == "plaintext":
        return {}
    options: dict[str, str] = {"security.protocol": settings.kafka_security}
    if settings.kafka_security.endswith("ssl"):
        ssl_context(settings)  # says what is wrong with the files in one line; librdkafka does not
        for name, path in (
            ("ssl.ca.location", settings.kafka_ca),
            ("ssl.certificate.location", settings.kafka_cert),
            ("ssl.key.location", settings.kafka_key),
        ):
            if path is not None:
                options[name] = str(path)
    if settings.kafka_security.startswith("sasl"):
        username, password = _sasl(settings)
        options |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": username,
            "sasl.password": password,
        }
    return options


def faust_credentials(settings: Settings) -> Any:
    """For Faust and through it aiokafka; None for plain text. Raises as `librdkafka_options`."""
    if settings.kafka is None or settings.kafka_security == "plaintext":
        return None
    import faust  # noqa: PLC0415  slow to import, and only the worker needs it

    context = ssl_context(settings) if settings.kafka_security.endswith("ssl") else None
    if settings.kafka_security == "ssl":
        return faust.SSLCredentials(context)
    username, password = _sasl(settings)
    return faust.SASLCredentials(
        username=username,
        password=password,
        ssl_context=context,
        mechanism=settings.kafka_sasl_mechanism,
    )


def ssl_context(settings: Settings) -> ssl.SSLContext:
    return client_context(
        settings.kafka_ca,
        settings.kafka_cert,
        settings.kafka_key,
        what="GRIDPIPE_KAFKA_CA, GRIDPIPE_KAFKA_CERT, GRIDPIPE_KAFKA_KEY",
    )


def _sasl(settings: Settings) -> tuple[str, str]:
    if settings.kafka_username is None or settings.kafka_password_file is None:
        raise ConfigurationError(
            f"GRIDPIPE_KAFKA_SECURITY={settings.kafka_security} needs GRIDPIPE_KAFKA_USERNAME and "
            "GRIDPIPE_KAFKA_PASSWORD_FILE"
        )
    secret = load_secret(settings.kafka_password_file, create=False, least=MIN_PASSWORD_BYTES)
    return settings.kafka_username, secret.decode()
