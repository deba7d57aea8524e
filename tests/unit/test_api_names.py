"""`import dtl` has the public functions, also if packages of the same names are imported."""

import dtl


def test_public_functions_stay_functions():
    import dtl.plan.planner
    import dtl.train.loop
    from dtl import api

    assert dtl.check is api.check
    assert dtl.evaluate is api.evaluate
    assert dtl.export is api.export
    assert dtl.push is api.push
    assert dtl.plan is api.plan
    assert dtl.predict is api.predict
    assert dtl.train is api.train
    assert dtl.load_config is api.load_config
    assert dtl.load_run is api.load_run


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(dtl, "tarin")
