import pytest

pytest.register_assert_rewrite("daydo_db.testing")
