"""Loaders of tables: small files made in the format, and the real one where it is."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from jaxlm.decode import ConfigError
from jaxlm.fairness.tables import adult, compas

ADULT = """age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,\
capital-gain,capital-loss,hours-per-week,native-country,income-per-year
39, State-gov,77516,Bachelors,13,Never-married,Adm-clerical,Not-in-family,White,Male,2174,0,40,United-States,<=50K
50,Private,83311,Bachelors,13,Married,Exec-managerial,Wife,Black,Female,0,0,13,Cuba,>50K.
"""
COMPAS_HEADER = (
    "sex,age,race,juv_fel_count,decile_score,juv_misd_count,juv_other_count,priors_count,days_b_screening_arrest,"
    "c_charge_degree,is_recid,decile_score,score_text,priors_count,two_year_recid\n"
)
COMPAS = [
    "Male,69,African-American,0,1,0,0,3,-1,F,0,1,Low,99,0",
    "Male,34,Caucasian,0,3,0,0,0,-1,M,1,3,Low,99,1",
    "Female,24,Caucasian,0,4,0,1,4,-40,F,1,4,Low,99,1",
    "Female,24,Other,0,4,0,1,4,0,F,1,4,Low,99,1",
    "Female,44,African-American,0,4,2,1,4,,F,1,4,Low,99,1",
]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_adult_is_read_plain_or_compressed(tmp_path):
    plain, packed = tmp_path / "adult.csv", tmp_path / "packed" / "adult.csv.gz"
    plain.write_text(ADULT)
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(ADULT.encode()))
    table = adult(plain)
    np.testing.assert_array_equal(adult(packed.parent).features, table.features)
    assert table.labels.tolist() == [0, 1]
    assert table.attributes["sex"].tolist() == ["Male", "Female"]
    assert table.features[0, table.columns.index("capital-gain")] == pytest.approx(np.log(2175))
    assert "CC BY 4.0" in table.licence
    assert "sex=Male" in table.columns
    blind = table.blind("sex")
    assert [c for c in table.columns if c not in blind.columns] == ["sex=Male"]
    assert blind.features.shape[1] == table.features.shape[1] - 1
    other = adult(write(tmp_path / "other.csv", ADULT.replace("State-gov", "Private").replace("Cuba", "United-States")))
    same = other.like(table)
    assert same.columns == table.columns
    assert same.features[:, table.columns.index("workclass=State-gov")].tolist() == [0, 0]
    assert same.features[:, table.columns.index("age")].tolist() == [39, 50]
    with pytest.raises(ConfigError, match="Adult has no attribute 'age'; it has sex, race"):
        table.blind("age")


def test_compas_is_filtered_as_propublica_did(tmp_path):
    file = tmp_path / "compas.csv"
    file.write_text(COMPAS_HEADER + "\n".join(COMPAS) + "\n")
    table = compas(file)
    assert len(table) == 2, "outside 30 days, another race and an empty day are left out"
    assert table.features[:, table.columns.index("priors_count")].tolist() == [3, 0], "the first of two columns counts"
    assert table.features[:, table.columns.index("felony")].tolist() == [1, 0]
    assert "sub-licensing" in table.licence
    assert "Barenstein" in table.caveat
    with pytest.raises(ConfigError, match="no row of race 'Asian'"):
        compas(file, races=("Asian", "Caucasian"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ADULT.replace("hours-per-week", "hours"), "no column hours-per-week; is this the adult file"),
        (ADULT.replace("income-per-year", "wage"), "no column of labels"),
        (ADULT.replace("50,Private", "old,Private"), "age='old' in data row 2 is no number"),
        (ADULT.replace(">50K.", "rich"), "income 'rich' in data row 2"),
        (ADULT + "1,2\n", ":4: 2 values under 15 columns"),
        (ADULT.splitlines()[0], "no rows"),
    ],
)
def test_bad_files_are_refused_with_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "adult.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        adult(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.csv: no such file"):
        compas(tmp_path / "nowhere.csv")


def test_the_real_adult_has_its_known_counts(shared):
    table = adult(shared / "data" / "adult")
    assert len(table) == 32561
    assert table.labels.sum() == 7841
    assert (table.attributes["sex"] == "Female").sum() == 10771


def test_the_real_compas_has_its_known_counts():
    file = os.environ.get("JAXLM_COMPAS")
    if not file:
        pytest.skip("JAXLM_COMPAS is not set: ProPublica's file may be read, not handed on")
    table = compas(Path(file))
    rates = [table.labels[table.attributes["race"] == r].mean() for r in ("Caucasian", "African-American")]
    assert len(table) == 5278
    assert rates == pytest.approx([0.391, 0.523], abs=5e-4)
