"""Where LeRobot's own factory looks for the robot of type ``mock_robot``."""
