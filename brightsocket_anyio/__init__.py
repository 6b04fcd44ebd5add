"""Websocket APIs with structured concurrency, on AnyIO and Trio, speaking Socket.IO."""

from .api import Bound as Bound
from .api import Brightsocket as Brightsocket
from .client import Client as Client
from .client import open_client as open_client
from .connection import Connection as Connection
from .errors import BrightsocketError as BrightsocketError
from .errors import ChannelRefused as ChannelRefused
from .errors import ConfigurationError as ConfigurationError
from .errors import ConnectionLost as ConnectionLost
from .errors import HandshakeError as HandshakeError
from .errors import ProtocolError as ProtocolError
from .errors import Refused as Refused
from .pool import Pool as Pool
from .request import Request as Request
from .settings import Settings as Settings
from .statistics import Statistics as Statistics
