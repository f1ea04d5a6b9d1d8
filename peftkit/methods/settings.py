"""What the sections `adapter` of all methods have in common. Imports nothing heavy."""

from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.config.keys import section

if TYPE_CHECKING:
    from peft import PeftConfig


@section
class AdapterSettings:
    """The base of each method's section.

    A method's own class names the fields of its config that a recipe sets, with the defaults of a
    recipe. It also says what must be known before anything is loaded.
    """

    merges: ClassVar[bool] = False
    """Whether the adapter can be folded into the weights."""
    why_not_packed: ClassVar[str | None] = None
    """Why texts that are packed into one row cannot be learned from; None where they can."""
    why_not_sharded: ClassVar[str | None] = None
    """Why the adapter cannot be trained in the shards of FSDP; None where it can."""

    method: str = ""
    """The method's name."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any other field of the method's config, e.g. {use_dora: true}."""

    def __post_init__(self) -> None:
        if self.options:
            self.build()

    def build(self) -> "PeftConfig":
        """Return the method's config.

        Raises:
            ConfigError: an option is not a field of the config or is set beside `options` already,
                or a value is refused.
        """
        from peftkit.errors import ConfigError, nearest
        from peftkit.methods.method import method_named

        config_class = method_named(self.method).config_class
        known = config_class.__dataclass_fields__
        named = {name: value for name, value in vars(self).items() if name in known}
        for name in self.options:
            if name not in known:
                raise ConfigError(f"adapter.options.{name}: unknown key{nearest(name, known)}")
            if name in named:
                raise ConfigError(f"adapter.options.{name}: set adapter.{name} instead")
        try:
            config: PeftConfig = config_class(**named, **self.options)
        except (TypeError, ValueError) as problem:
            raise ConfigError(f"adapter.options: {problem}") from problem
        return config
