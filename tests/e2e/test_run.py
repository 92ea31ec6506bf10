from tests.e2e.installation import Installation
def test_a(installation: Installation) -> None:
    print(installation.ghv("run", "--image", "tiny", "--", "true"))
    print(installation.ghv("events"))
    installation.assert_clean()
