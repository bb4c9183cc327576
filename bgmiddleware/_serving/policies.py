"""What a page may load and do (CSP, https://www.w3.org/TR/CSP3/): what it is made of, and nothing else."""

from . import assets

__all__ = ["page_policy", "plain_policy"]

_COMMON = "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
# No string becomes code or HTML in any way, as far as the browser knows of it.
_TRUSTED_TYPES = "require-trusted-types-for 'script'; trusted-types 'none'"


def plain_policy(style: str, script: str = "") -> str:
    """Return the policy of a page with this one *style*, and with *script* if there is one, which may ask its site."""
    scripts = f"; script-src {_hash(script)}; connect-src 'self'" if script else ""
    return f"default-src 'none'; style-src {_hash(style)}{scripts}; {_COMMON}"


def page_policy(*, of_the_site: bool, external: bool) -> str:
    """Return the policy of a job's page: ours, or one *of the site*, which may use what the site has, but no inline
    code but ours. *external*: whether our script and style are not in the page, but at URLs of this site."""
    script, style = ("", "") if external else (_hash(assets.script()), _hash(assets.style()))
    if of_the_site:
        return (
            f"default-src 'self'; script-src 'self' {script}; style-src 'self' {style}; img-src 'self' data:;"
            f" object-src 'none'; {_COMMON}"
        )
    own = "'self'" if external else ""
    return (
        f"default-src 'none'; script-src {own or script}; style-src {own or style}; connect-src 'self';"
        f" img-src {own or 'data:'}; {_COMMON}; {_TRUSTED_TYPES}"
    )


def _hash(text: str) -> str:
    return f"'sha256-{assets.digest(text)}'"
